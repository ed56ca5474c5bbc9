// Package prefix shares keys and values between sequences of a kvcache.Cache: an
// index of prefixes, forks for sampling and beams, the taking back of
// speculation, attention that reads a shared prefix once, and reuse of what was
// computed at another place.
//
// # Index
//
//	lease, err := index.Match(&prompt)       // the pages that are there
//	id, err := lease.Start()                 // a sequence that begins with them
//	slots, err := prefix.Extend(cache, index, ids, counts, slots) // room for the rest
//	…                                        // compute and store it
//	lease.Release()
//	index.Insert(&prompt, id)                // for those who come after
//
// An Index holds full pages of a cache by Cache.Hold, beside the sequences, so
// that free + used + cached = all. Two kinds, a radix tree and a chain of hashes,
// find and evict the same pages in the same order.
//
// # Isolation
//
// Namespace, Salt and Adapter of a Prompt, and the Media of a page, are compared
// as they are, each in its own place: no concatenation and no hash stands for
// them. What an Index shares, two prompts have in common in full.
//
// # What is there beside
//
//   - Fan, Beams: forks for parallel sampling and for beam search.
//   - Levels: what an Index evicts goes to a store of package tier, and a prompt
//     that begins with it gets it back.
//   - Speculate: drafted tokens, of which some are taken back.
//   - Cascade: attention over a shared prefix once for all who share it.
//   - Module, Compose: passages computed apart, put together at any place, and
//     which tokens of them to compute anew (FirstTokens, Deviation, Highest), how
//     (Cache.Rewrite, Recompute).
//
// # Limits
//
// Only full pages are shared. Without Levels, what Evict gives back is gone. A
// draft that is a tree keeps a path of it by Truncate only where the path comes
// first.
package prefix
