"""The group level: from what the participant level left in the output folder to tables and maps of the cohort."""
