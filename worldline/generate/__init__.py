"""From a prompt to a video: request.py says what is asked for, pipeline.py makes it."""
