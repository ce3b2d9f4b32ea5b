"""How good an encoder is: few-shot episodes, retrieval, results, figures."""
