"""Facts about a task: names, units, geometry."""
