package parallel

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// Span is the tokens First, First+Step, … of a sequence, Count of them.
type Span struct{ First, Step, Count int }

// Round is what one rank computes at a time: its Query tokens against the Key
// tokens that rank From holds, of query heads Heads[0] to Heads[1]−1, or of all
// where both are 0.
type Round struct {
	From       int
	Query, Key Span
	Mask       attention.Mask // between the two, as Plan counts their indices
	Pairs      int64          // that the Mask shows, for one head
	Heads      [2]int
}

// Schedule is a way to share out attention over one sequence.
type Schedule struct {
	Name   string
	Tokens int
	Held   [][]Span  // [ranks] tokens whose queries, keys and values a rank has, in its own order
	Rounds [][]Round // [ranks] in order
}

// Work is the pairs of query heads, tokens and keys of each rank; with heads the
// number of query heads. A step takes as long as the rank with the most.
func (s *Schedule) Work(heads int) []int64 {
	work := make([]int64, len(s.Rounds))
	for r, rounds := range s.Rounds {
		for i := range rounds {
			n := heads
			if h := rounds[i].Heads; h[1] > 0 {
				n = h[1] - h[0]
			}
			work[r] += rounds[i].Pairs * int64(n)
		}
	}
	return work
}

// Imbalance is the most work of a rank over the mean: 1 at best.
func (s *Schedule) Imbalance(heads int) float64 {
	most, sum := int64(0), int64(0)
	for _, w := range s.Work(heads) {
		most, sum = max(most, w), sum+w
	}
	if sum == 0 {
		return 1
	}
	return float64(most) * float64(len(s.Rounds)) / float64(sum)
}

func check(name string, tokens, ranks int) error {
	if tokens < 0 || tokens >= kernel.MaxBound {
		return fmt.Errorf("parallel: %s of %d tokens, want 0 to 2³¹−2", name, tokens)
	}
	if ranks < 1 || ranks > 1<<16 {
		return fmt.Errorf("parallel: %s of %d ranks, want 1 to 65536", name, ranks)
	}
	return nil
}

// parts cuts tokens into n runs, the first of which have one more.
func parts(tokens, n int) []Span {
	list, first := make([]Span, n), 0
	for i := range list {
		count := tokens / n
		if i < tokens%n {
			count++
		}
		list[i], first = Span{first, 1, count}, first+count
	}
	return list
}

// meet is the round of queries against keys that rank from holds, or ok false
// where no query sees a key. Both have the same step.
func meet(from int, query, key Span, causal bool) (r Round, ok bool) {
	r = Round{From: from, Query: query, Key: key, Mask: attention.Bidirectional(), Pairs: int64(query.Count) * int64(key.Count)}
	if causal && r.Pairs > 0 {
		// query a + step·t sees key b + step·u where u − t <= ⌊(a−b)/step⌋
		late := int(kernel.FloorDiv(int64(query.First-key.First), int64(query.Step)))
		r.Pairs = 0
		full := max(0, min(query.Count, query.Count-(key.Count-1-late))) // queries that see all keys
		r.Pairs += int64(full) * int64(key.Count)
		if first, end := max(0, -late), query.Count-full; first < end { // those that see first+late+1 keys and one more each
			r.Pairs += int64(end-first) * int64(first+late+1+end+late) / 2
		}
		if full < query.Count {
			// Plan counts the last query as the last key
			r.Mask = attention.Mask{Regions: []kernel.Region{{
				Diff: kernel.Range{Lo: int32(key.Count - query.Count - late), Hi: kernel.MaxBound}, Key: kernel.All,
			}}}
		}
	}
	return r, r.Pairs > 0
}

// rotate makes the rounds of ranks whose keys go round a ring: in round k rank r
// has those of rank r−k. A pair of spans is a round.
func rotate(held [][]Span, causal bool) [][]Round {
	n := len(held)
	rounds := make([][]Round, n)
	for r := range held {
		for k := range n {
			from := (r - k + n) % n
			for _, q := range held[r] {
				for _, key := range held[from] {
					if x, ok := meet(from, q, key, causal); ok {
						rounds[r] = append(rounds[r], x)
					}
				}
			}
		}
	}
	return rounds
}
