"""Speech emotion recognition as distributed batch jobs on Ray.

Importing this package loads neither torch nor ray; the layers that need them import them.
"""

__version__ = "0.1.0"
