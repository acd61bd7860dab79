"""ControlNet in a job: its units, its models, its maps, and what they change in the U-Net."""
