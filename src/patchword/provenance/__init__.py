"""What a run was made of: specs of objects, hub commits, fingerprints of data, and the machine."""
