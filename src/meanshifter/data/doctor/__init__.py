"""Find everything that is wrong with a dataset, write a repaired copy, and check a sample before training."""

from meanshifter.data.doctor.check import SampleReport, check, check_sample
from meanshifter.data.doctor.findings import KINDS, Finding, Kind, Report
from meanshifter.data.doctor.repair import Repair, repair

__all__ = ["KINDS", "Finding", "Kind", "Repair", "Report", "SampleReport", "check", "check_sample", "repair"]
