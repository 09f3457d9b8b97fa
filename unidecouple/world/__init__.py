"""The synthetic benchmark: scenes of OpenMoji drawings, their prompts and questions, a judge, and the data source of runs on it.

A plug-in: nothing outside this package imports it; ``unidecouple.plugins`` names what it offers.
"""
