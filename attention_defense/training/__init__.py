"""AAD and the trainings that it is compared with."""
