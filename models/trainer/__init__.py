"""Training, export and evaluation of Logster's two models. README.md says how the parts fit."""
