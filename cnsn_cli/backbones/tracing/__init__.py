"""Turns ordinary networks into backbones: splits each network into units and a head.

network --requirements--> ordinary --trace--> Graph --dataflow--> what is needed after each node
        --units--> Backbone --equivalence--> the pieces compute what the network computes
"""
