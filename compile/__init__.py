"""From the reference model to deployable files: capture, passes, one writer a target."""
