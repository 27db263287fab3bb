"""moesearch: which sparse mixture-of-experts language model should I train?"""

__version__ = "0.1.0"
