"""Modules:

- `memtag_research.cli`: `memtag`: argument parsing only; every command is one call of the package
- `memtag_research.core`: Errors that say what to do, masking of personal values, and the few checks that everybody needs
- `memtag_research.data.contracts`: The canonical tables as data, and checks of whole tables inside the engine
- `memtag_research.data.datasets`: Public data with source and licence, each brought in through a mapping like any other
- `memtag_research.data.engine`: Opens Ibis backends, and is the only place that knows their differences
- `memtag_research.data.grains`: One rule for orders: the two derived tables on which every measure stands
- `memtag_research.data.ingest`: Source files → canonical Parquet and grains: whole or not at all, every dropped row counted by reason
- `memtag_research.data.privacy`: Surrogate keys for members, and members forgotten in every file of a workspace
- `memtag_research.data.simulate`: Every canonical table of an invented programme, and the truth about it beside them
- `memtag_research.data.sources`: Source files → raw tables of the engine, every row numbered, nothing interpreted
- `memtag_research.data.workspace`: A folder with `memtag.yaml`, its tables by name, and what is known about them
- `memtag_research.language`: One label file, two languages, and numbers that read the same on every page
- `memtag_research.measures.cohorts`: Who comes a second time, and who keeps coming, by the date of the first purchase
- `memtag_research.measures.lifecycle`: Where each member stands at a date, and who moved between two dates
- `memtag_research.measures.metrics`: One definition, one function and one label each; what cannot be computed says why
- `memtag_research.measures.periods`: A month, quarter, ISO week, year or range of days, and the periods it is compared with
- `memtag_research.measures.rfm`: How recently, how often and for how much each member bought; scores, classes, segments, migration
- `memtag_research.measures.sales`: Why member sales changed, split over four factors to the cent, and where they were made
- `memtag_research.reports.page`: Key figures, tables, pictures, definitions and checks that every report lays out alike.
- `memtag_research.reports.parameters`: A report's parameters are read from its notebook and checked before anything starts.
- `memtag_research.reports.publish`: Whoever opens a report sees the old one or the new one, whole, whatever happens to the run.
- `memtag_research.reports.runner`: Parameters in, a published page out, or an error that names the cell.
- `memtag_research.reports.segment`: What happened to member sales and to the members in a period, answer first.
- `memtag_research.reports.segment_numbers`: Every figure that the segment report prints, computed once, with no word or picture.
- `memtag_research.tags.catalogues`: Definitions in YAML and Python: read with the place of every mistake, written back without loss, overlaid
- `memtag_research.tags.definition`: What a source, a metric, a tag and a segment are, as data
- `memtag_research.tags.expression`: The language of tag rules: parsed, typed, compiled, evaluated; three-valued
- `memtag_research.world.baskets`: Products, stores, the lines of every order, how they were paid, and what came back
- `memtag_research.world.calendar`: Festivals, and how heavy each day of the year is
- `memtag_research.world.contacts`: Visits, messages, consents, opinions and ids of the people of a block: all that happens beside buying
- `memtag_research.world.faults`: What goes wrong with data and what people do wrong, on request, and each counted
- `memtag_research.world.files`: The same programme as tills, spreadsheets and market places export it
- `memtag_research.world.parameters`: Everything that is planted, each with a default, in one frozen object
- `memtag_research.world.people`: Who is in the programme: how often they would buy, what they like, where they live, who they know
- `memtag_research.world.programme`: What the programme gives to its members, and the plain rules that say whether that is right
- `memtag_research.world.purchases`: When people buy, why, and in which tier, step by step through the calendar"""

__version__ = "0.1.0"
