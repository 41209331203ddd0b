"""Commands that people type, killed: papermill and snakemake, with the kernels and jobs that they started."""
