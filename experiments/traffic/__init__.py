"""The books of several engines under the same traffic: which blocks are held, wasted, shared and taken back.

Schedulers and block managers run as they are; no model runs, since the answers are given. What comes out is exact and
the same on every machine.

requests -> Books (ours, nano-vLLM's, vLLM's) -> drive -> Usage -> results/traffic/<run_id>/traffic.json
"""
