// Package policy decides which keys a sequence can do without. It only decides:
// what comes out is a kvcache.Plan for each KV head of each layer, and
// kvcache.HeadCache.Apply carries all of them out, or none.
//
// # Parts
//
// A Policy is put together of a Score (what a key is worth), a Budget (how many
// keys each layer and head may keep), a Trigger (when it is time), and a Merge
// (what becomes of the keys that go). A codec of the cache, kvcache.Config.Coding,
// goes with any of them, with the limit that rows of a coded page stay or go
// together: Policy.Block. What is no such sum of parts, as a head that is chosen to keep
// everything, is a Planner of its own. Policies lists them all by name.
//
// # Step
//
//	heads := policy.NewSequence(layers, kvHeads)     // beside a sequence of a HeadCache
//	heads.Extend(tokens)                             // whenever the cache is extended
//	heads.Head(layer, head).Observe(observation)     // what Needs says, of each
//	if p.Due(step) {                               // a Policy knows when
//		plans, err := p.Plan(heads, keys)            // changes nothing
//		err = cache.Apply([]kvcache.ID{id}, plans)   // all or nothing
//		err = heads.Applied(plans)
//	}
//
// A kvcache.Cache, which has one table for all heads and layers, takes the plan of a
// Sequence of one layer and one head, told the means over all.
//
// Plan gives the same for the same Sequence, on every machine but for the last
// bits of what it was told.
//
// # What policies need of attention
//
//   - nothing: the rows of keys and values, or not even these.
//   - sums over the last queries of the weights of each key (Recent): one
//     kernel.Attention.ColumnStats with a Window.
//   - sums, or sums of squares, over all queries (Sums, Squares): ColumnStats
//     without a Window, at each step.
//   - the largest weights (Maxima): ColumnStats with Maximum.
//   - the weights of each query by itself (Each): ColumnStats with Window 1.
//   - mean and covariance of queries (QueryMoments): MomentsOf.
//
// Weights are means over the query heads that share a KV head: Weights makes them
// of what ColumnStats gave.
package policy
