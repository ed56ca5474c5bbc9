package prefix

import (
	"fmt"

	"github.com/longctx/longctx/kvcache"
)

// Fan forks a sequence n times, for parallel sampling of one prompt: all, or
// none and an error.
func Fan(c *kvcache.Cache, id kvcache.ID, n int) ([]kvcache.ID, error) {
	if n < 0 {
		return nil, valueError("Fan: n", n, "0 or more")
	}
	ids := make([]kvcache.ID, 0, n)
	for range n {
		fork, err := c.Fork(id)
		if err != nil {
			for _, id := range ids {
				_ = c.Free(id)
			}
			return nil, fmt.Errorf("prefix: %w", err)
		}
		ids = append(ids, fork)
	}
	return ids, nil
}

// Beams is a step of beam search: the i-th beam of the result goes on from
// beams[parents[i]]. The first to name a parent takes its sequence, others fork
// it, and beams that none names are freed. After an error nothing has changed.
func Beams(c *kvcache.Cache, beams []kvcache.ID, parents []int) ([]kvcache.ID, error) {
	seen := make(map[kvcache.ID]bool, len(beams))
	for i, id := range beams {
		if seen[id] {
			return nil, valueError(fmt.Sprintf("Beams: beams[%d]", i), id, "a sequence not named before")
		}
		seen[id] = true
		if _, err := c.Len(id); err != nil {
			return nil, fmt.Errorf("prefix: %w", err)
		}
	}
	for i, p := range parents {
		if p < 0 || p >= len(beams) {
			return nil, valueError(fmt.Sprintf("Beams: parents[%d]", i), p, "0 to %d", len(beams)-1)
		}
	}
	next, taken := make([]kvcache.ID, len(parents)), make([]bool, len(beams))
	for i, p := range parents {
		if !taken[p] {
			next[i], taken[p] = beams[p], true
			continue
		}
		fork, err := c.Fork(beams[p])
		if err != nil {
			return nil, fmt.Errorf("prefix: %w", err) // freed in the meantime
		}
		next[i] = fork
	}
	for i, id := range beams {
		if !taken[i] {
			if err := c.Free(id); err != nil {
				return next, fmt.Errorf("prefix: %w", err)
			}
		}
	}
	return next, nil
}

// Draft is a speculation on some sequences: tokens extended by since Speculate,
// or since the last Accept, of which only the first may stay (Leviathan et al.,
// "Fast Inference from Transformers via Speculative Decoding",
// https://arxiv.org/abs/2211.17192).
type Draft struct {
	cache *kvcache.Cache
	ids   []kvcache.ID
	base  []int // lengths that are sure
}

// Speculate takes what the sequences have as sure.
func Speculate(c *kvcache.Cache, ids ...kvcache.ID) (*Draft, error) {
	d := &Draft{cache: c, ids: append([]kvcache.ID(nil), ids...), base: make([]int, len(ids))}
	for i, id := range ids {
		var err error
		if d.base[i], err = c.Len(id); err != nil {
			return nil, fmt.Errorf("prefix: %w", err)
		}
	}
	return d, nil
}

// Accept keeps the first counts[i] drafted tokens of the i-th sequence and takes
// back the others. Their pages are free again, or are their other owners'. More
// than were drafted is a *ValueError, and nothing has changed.
//
// Of a cache with a Coding whose Residual is below the number drafted, what is
// taken back may have been coded: a *kvcache.CodedPageError, by which time the
// sequences before that one are done.
func (d *Draft) Accept(counts []int) error {
	if len(counts) != len(d.ids) {
		return valueError("Accept: number of counts", len(counts), "that of sequences, %d", len(d.ids))
	}
	for i, id := range d.ids {
		n, err := d.cache.Len(id)
		if err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
		if counts[i] < 0 || counts[i] > n-d.base[i] {
			return valueError(fmt.Sprintf("Accept: counts[%d]", i), counts[i], "0 to %d, the number drafted", n-d.base[i])
		}
	}
	for i, id := range d.ids {
		if err := d.cache.Truncate(id, d.base[i]+counts[i]); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
		d.base[i] += counts[i]
	}
	return nil
}
