"""What can be concluded from estimates: degrees of freedom, robust errors, tests, intervals.  Arrays, no SQL."""
