"""Whole clusters in one process and virtual time: the services and the client library as they are, on
simulated machines.

``loop`` runs asyncio code of many processes from one seed; ``network`` and ``disk`` are what those
processes have instead of sockets and devices; ``world`` puts clocks, randomness and threads in their place
while a history runs; ``cluster`` boots hosts and clients on it; ``workload``, ``nemesis`` and ``strand``
(played on a ``scene``) are what happens to them; ``history``, ``linearizable`` and ``checks`` judge.
docs/correctness.md says what it shows and what not.
"""
