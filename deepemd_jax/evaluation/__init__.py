"""Evaluation of encoders: few-shot episodes, retrieval, results and figures."""
