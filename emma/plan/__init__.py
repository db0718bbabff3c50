"""What a recipe costs before anything is downloaded: parameters, FLOPs, memory and time, from configurations alone."""
