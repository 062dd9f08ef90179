"""What a job leaves: its output folder, records of unfinished work, reports."""
