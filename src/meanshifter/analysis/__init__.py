"""What is made to be read: studies, comparisons, the demo, and their pages."""
