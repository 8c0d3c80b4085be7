"""The command line outside Lightning: options, configuration files, hints and explanations of errors."""
