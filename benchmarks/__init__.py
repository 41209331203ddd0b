"""How fast rnlib is, against PyTorch's own layers, plain loops and other packages, on the machine at hand.

``python -m benchmarks`` measures every row of the performance table in 12 to 20 minutes on two CPU cores,
prints it and writes ``benchmarks/results.csv``, from which the book's performance page is made.
``results-<name>.csv`` beside it are of other machines. One module is one row.
"""
