"""The parts of training outside the module: checkpoints, signals, processes, parameter groups and schedules."""
