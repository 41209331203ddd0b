"""How fast rnlib is, against PyTorch's own layers, plain loops and other packages, on the machine at hand.

``python -m benchmarks`` measures every row of the performance table in about twelve minutes on two CPU cores,
prints it and writes ``benchmarks/results.csv``, from which the book's performance page is made. One module is
one row.
"""
