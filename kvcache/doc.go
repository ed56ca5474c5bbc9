// Package kvcache keeps the keys and values of many sequences, for all layers
// of a model, in pages of a fixed size (Kwon et al., "Efficient Memory
// Management for Large Language Model Serving with PagedAttention",
// https://arxiv.org/abs/2309.06180).
//
// # Step
//
// A step of a model over a batch of sequences is
//
//	slots, err := cache.Extend(ids, counts, slots[:0]) // room for the new tokens, or nothing
//	err = view.LowerKV(&batch)                         // lengths and pages, for attention
//	for layer := range layers {
//		err = cache.Append(layer, slots, key, value)   // store the new rows
//		…                                              // attend to KeyView(layer), ValueView(layer)
//	}
//
// Extend and LowerKV allocate only to grow what they keep, Append not at all.
// Bind hands attention all there is of a layer, with FP8 scales and coded pages.
//
// # Coded pages
//
// With Config.Coding a cache has pages of two kinds: plain ones, into which
// tokens are stored, and coded ones of a quarter of the size or less, which are
// never written to again (kernel.Coding). A page is due to be coded when it is
// full and all its tokens are older than the last Residual of its sequence; so
// what a rejected speculation takes back was not coded, if it is no more than
// Residual tokens. Extend codes the pages due in all layers, before it adds
// tokens, and gives the plain pages back, in the tables of the sequences it was
// given: those of others may be in use. A sequence that shares a page with them
// takes the coded one at its own next Extend. A page with values that the Coding
// cannot hold, a NaN for one, stays plain, and so does one for which no coded
// page is free.
//
// # Eviction
//
// Apply removes any keys of sequences, and merges others, by a Plan: the pages
// that are no longer held are free. Package kvcache/policy makes plans. Drop is
// for whole pages alone and copies nothing.
//
// # Room
//
// Reserve sets pages aside for a sequence: a scheduler admits a request with it.
// Extend takes all pages that a step needs or none, with a typed error that says
// how many there are. A SwapSpace moves sequences to the host and back, and pages
// to other processes and stores (packages page and tier); a Swapper is needed for
// it. A context ends what takes long, Free and SwapSpace.Discard all else of a
// sequence.
//
// # Three integers
//
// The ordinal of a key is its place in its sequence: 0 <= j < Len. Masks and
// page tables go by it. Its position is what RoPE rotates by; it is the ordinal
// unless the caller gave another or keys before it were dropped. Its slot is
// where its row lies: page·PageSize + offset, in the tensors of every layer.
//
// # Holders
//
// Hold keeps full pages of a sequence for a holder that is none, and Start
// begins sequences with them: package kvcache/prefix finds the pages of a common
// beginning so. A page that only holders have is cached. Nothing here frees it:
// Extend fails with an *OutOfPagesError, and the holder decides what to Release.
//
// # Invariants
//
// CheckIntegrity tests the first five.
//
//  1. Every page, plain or coded, is free, used or cached: it is on the free
//     list of its kind once, or in at least one table, or in none and held by
//     Hold. free + used + cached = all. The free plain pages are at least as
//     many as are reserved.
//  2. The count of a page is the number of tables that hold it, those of pages
//     that a SwapSpace is copying included, and of its holds. No table holds a
//     page twice. A held page was full when it was held.
//  3. A sequence of n keys holds exactly ⌈n/PageSize⌉ pages; only the last may
//     be partly filled, and then it is plain. Key j lies in the ⌊j/PageSize⌋th, at j mod PageSize.
//  4. A sequence of n keys has n positions, each of 0 to 2³¹−1.
//  5. Slots and lengths are below 2³¹.
//  6. A page that is counted more than once or held is not written, nor a coded one. Extend gives a sequence its own
//     copy of a shared, partly filled last page, in all layers; Append refuses
//     a slot whose page is shared or free; Apply writes to free pages alone.
//  7. Every method that changes the cache does all it was asked, or returns an
//     error and has changed nothing. There are two exceptions. If the backend
//     fails in Append, rows of the slots it was given may have been written.
//     And pages that Extend has coded stay so if it then finds too few free
//     pages, or the backend fails to copy one.
//  8. An ID is never given twice, not even by two caches of one process.
//
// It follows from 6 that the rows of a sequence do not change while it holds
// their pages, whatever is done to other sequences, its forks included. Its own
// Extend may exchange pages for coded ones of their rows.
//
// # Growth
//
// With Config.MaxPages a cache begins with Config.Pages and is given more by Grow,
// where they are, on a backend whose memory can do that (kernel.Grower). A
// scheduler admits requests with Reserve, makes room with SwapSpace.SwapOut,
// Truncate, Free or Apply, and puts requests back with Restore.
//
// # Concurrency
//
// The methods of a Cache may be called from several goroutines. Calls for one
// sequence must be in an order that makes sense, and the caller sees to that:
//
//   - From Extend until Append of the last layer has returned, the sequence
//     must not be forked, truncated, dropped from, applied to, freed or extended again: its
//     new rows are not yet there. (Append finds most of such mistakes.)
//   - While attention reads a sequence by tables that LowerKV made, that
//     sequence must not be extended, truncated, dropped from, applied to or freed: it could
//     let go of a page, which another then writes. Fork of it is allowed, and
//     so is everything on other sequences.
//
// "Until" and "while" are meant in the order in which the device works: on a
// backend that queues its work in one stream, the order of the calls is enough.
// The lock is held for metadata and while pages are copied and coded, not while
// Append stores rows.
package kvcache
