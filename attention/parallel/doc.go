// Package parallel is the arithmetic of context parallelism: which rank holds
// which tokens of a sequence, which keys its queries meet round after round, and
// how many pairs that is. A Schedule is data, made without a backend; Run carries
// it out with all ranks in one process, which is how it is tested and how a
// program without a network can use it. What is sent between ranks is stated in
// each technique's file; sending it is the program's part.
//
// A rank joins what its rounds give by their log-sum-exp (attention.Merge), in
// the order of the rounds. Under the Exact policy the result is a pure function of
// the Schedule: the same for any backend, number of threads or order in which
// ranks are computed. It has the bits of one rank where a query meets all its keys
// in one round (Ulysses, and each schedule of one rank); elsewhere the merges round
// differently and it agrees to rounding.
package parallel
