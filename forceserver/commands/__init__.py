"""The commands of `forceserver`, one module each, imported when they are used."""
