"""Benchmarks: one table of cases, engines and peers timed on it in one run, recorded as JSON.

    pytest bench/bench_engines.py --benchmark-json=bench/results/engines-DATE.json
    pytest bench/bench_peers.py   --benchmark-json=bench/results/peers-DATE.json
    python -m bench.depth         # cost per layer against depth
    python -m bench.cost          # the planner's constants, and its forecasts against the clock
    python -m bench.gpu           # tests and all rows on a GPU, with their targets
    python -m bench.planner       # its choice on 500 random networks
    python -m bench.startup       # import, one whole process, first field
    python -m bench.report        # the newest record of each kind as Markdown
    pytest bench/bench_kernels.py # the kernels alone, not recorded

All run from the root of a checkout. A figure is a median of warm calls unless it says otherwise;
compare figures within one run only.
"""
