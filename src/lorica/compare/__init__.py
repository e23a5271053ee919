"""Studies: methods x settings x ranks x seeds on one task, with their report."""
