"""The contract between Darkroom's parts: resources, run plan, progress, result and object names.

Everything that two parts must agree on lives here and nowhere else. The package imports neither a
framework (kopf, torch) nor any other part of Darkroom, so that each part can import it cheaply.
"""
