"""The demo: real parts on this machine, a small model trained for it, and pictures with known truth."""
