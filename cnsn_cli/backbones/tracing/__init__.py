"""Ordinary networks taken to pieces, so that they become backbones.

network --requirements--> ordinary --trace--> Graph --dataflow--> what is needed after each node
        --units--> Backbone --equivalence--> the pieces do what the network does
"""
