"""Formulas for receptive fields: geometry, moments, polynomials and bounds.

Nothing here imports an engine or a kernel: engines are checked against these formulas.
"""
