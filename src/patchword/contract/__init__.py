"""What every objective promises: the properties that the trainer, the metrics and the maps rely on."""
