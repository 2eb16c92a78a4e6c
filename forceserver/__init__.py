"""Force servers for i-PI: conservative, direct and blended forces from one model.

Importing this package loads neither torch nor i-PI; the modules that need them import them.
"""

__version__ = "0.1.0"
