"""The experiments of the paper: from a request to a report.

published    the paper's numbers: (method, k) → score
plan         tables as data: which methods, at which k; a cell's settings and command
runner       runs the commands that are missing
measures     what is measured on trained networks: speed, and encodings
runs         runs and their results, in folders or in a runs.jsonl
scores       the scores of a grid's runs, by seed
tables, tables_of_costs, figures   what a report shows of them
report       the whole report; document writes it as Markdown and HTML
cost         multiply-adds of networks and of their training
"""
