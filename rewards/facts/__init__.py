"""What a reward knows about a task: names, units, geometry."""
