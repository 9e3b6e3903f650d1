"""What every part of the package may use, one idea a file."""
