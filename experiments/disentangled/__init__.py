"""Do independently trained models of few noise levels converge faster than one joint model on many, and in which unit?

PLACEHOLDER
"""
