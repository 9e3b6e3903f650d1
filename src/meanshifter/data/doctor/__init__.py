"""The doctor: all that is wrong with a data set, told at once; a repaired copy; a quick look before a training."""

from meanshifter.data.doctor.check import check
from meanshifter.data.doctor.findings import KINDS, Finding, Kind
from meanshifter.data.doctor.repair import Repair, repair
from meanshifter.data.doctor.report import Report
from meanshifter.data.doctor.sample import Look, check_sample

__all__ = ["KINDS", "Finding", "Kind", "Look", "Repair", "Report", "check", "check_sample", "repair"]
