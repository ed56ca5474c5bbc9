package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/prefix"
)

// What moves pages out of the cache and back.

// keys are those of the full pages of a prompt. The namespace says all that the hash
// does not: the hash has the scope.
func (w *world) keys(p *prefix.Prompt) []page.Key {
	hashes, err := prefix.Hashes(prefix.SHA256{}, p, w.config.PageSize)
	must("Hashes", err)
	keys := make([]page.Key, len(hashes))
	for i, h := range hashes {
		keys[i] = page.Key{Namespace: fmt.Sprintf("%q %q %q", p.Namespace, p.Salt, p.Adapter), Hash: h}
	}
	return keys
}

// load adds the pages of a prompt that the levels have to a sequence, which ends at a
// page.
func (a *actor) load(id kvcache.ID, s *sequence, p *prefix.Prompt) int {
	size := a.w.config.PageSize
	have := len(s.tokens) / size
	keys := a.w.keys(p)[have:]
	ctx, cancel := a.context()
	defer cancel()
	blobs, err := a.w.manager.Prefix(ctx, keys, 1+a.in.below(3))
	must("Prefix", expected(err, a.w.faults, ctx.Err() != nil))
	for i, b := range blobs {
		if !a.w.known(keys[i], b) {
			fail("the page of %v is none that was put", keys[i])
		}
	}
	if len(blobs) == 0 {
		return 0
	}
	if a.in.below(6) == 0 {
		a.damaged(id, blobs)
	}
	a.arm(&a.w.backend.swaps)
	before := a.w.snapshot()
	err = a.w.space.Import(ctx, id, blobs...)
	if a.refused("Import", ctx, err, before) {
		return 0
	}
	for _, t := range p.Tokens[have*size : (have+len(blobs))*size] {
		s.push(t)
	}
	a.w.counts.add(func(c *counts) { c.imports += len(blobs) })
	return len(blobs)
}

// damaged sees that a page that is not whole is refused.
func (a *actor) damaged(id kvcache.ID, blobs [][]byte) {
	bad := slices.Clone(blobs)
	at := a.in.below(len(bad))
	bad[at] = bytes.Clone(bad[at])
	if a.in.below(2) == 0 {
		bad[at] = bad[at][:a.in.below(256)*len(bad[at])/256]
	} else {
		bad[at][a.in.below(256)*len(bad[at])/256] ^= 1 << a.in.below(8)
	}
	before := a.w.snapshot()
	err := a.w.space.Import(context.Background(), id, bad...)
	var format *page.FormatError
	var version *page.VersionError
	if !errors.As(err, &format) && !errors.As(err, &version) {
		fail("Import of a damaged page: %v", err)
	}
	a.w.unchanged("Import of a damaged page", before)
}

// save puts the full pages of a sequence in the levels.
func (a *actor) save() string {
	id, s := a.pick()
	if s == nil || !s.pure {
		return "no save"
	}
	n := 0
	for k, key := range a.w.keys(s.prompt()) {
		ctx, cancel := a.context()
		a.arm(&a.w.backend.swaps)
		before := a.w.snapshot()
		b, err := a.w.space.Export(ctx, id, k, key, nil)
		if a.refused("Export", ctx, err, before) {
			cancel()
			continue
		}
		a.w.unchanged("Export", before)
		must("the page", page.Check(b, key))
		a.w.keep(key, b)
		if a.w.faults { // a queue may be full of pages for a server that does not answer
			ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
		}
		err = a.w.manager.Put(ctx, key, b)
		must("Put", expected(err, a.w.faults, ctx.Err() != nil))
		cancel()
		if err == nil && !a.w.together {
			a.w.sure[key] = true
		}
		n++
	}
	return fmt.Sprintf("save %d pages of %d", n, id)
}

// swapOut moves some sequences to the host.
func (a *actor) swapOut() string {
	var ids []kvcache.ID
	for _, id := range a.live {
		if a.in.below(3) == 0 {
			ids = append(ids, id)
		}
	}
	what := fmt.Sprintf("SwapOut(%v)", ids)
	ctx, cancel := a.context()
	defer cancel()
	a.arm(&a.w.backend.swaps)
	before := a.w.snapshot()
	if a.refused(what, ctx, a.w.space.SwapOut(ctx, ids...), before) {
		return what + " refused"
	}
	for _, id := range ids {
		a.live = slices.DeleteFunc(a.live, func(x kvcache.ID) bool { return x == id })
		if n, _, _, err := a.w.space.Len(id); err != nil || n != len(a.model[id].tokens) {
			fail("%s: %d keys, %v", what, n, err)
		}
	}
	a.away = append(a.away, ids...)
	a.w.counts.add(func(c *counts) { c.swaps += len(ids) })
	return what
}

// bringBack restores a sequence, or discards it.
func (a *actor) bringBack() string {
	if len(a.away) == 0 {
		return "none is away"
	}
	at := a.in.below(len(a.away))
	id := a.away[at]
	if a.in.below(6) == 0 {
		must("Discard", a.w.space.Discard(id))
		delete(a.model, id)
		a.away = slices.Delete(a.away, at, at+1)
		return fmt.Sprintf("Discard(%d)", id)
	}
	what := fmt.Sprintf("Restore(%d)", id)
	ctx, cancel := a.context()
	defer cancel()
	a.arm(&a.w.backend.swaps)
	before := a.w.snapshot()
	if a.refused(what, ctx, a.w.space.Restore(ctx, id), before) {
		return what + " refused"
	}
	a.away = slices.Delete(a.away, at, at+1)
	a.live = append(a.live, id)
	return what
}

// compose puts a passage of one sequence after one of another, at any place.
func (a *actor) compose() string {
	if len(a.live)+len(a.away) >= maxLive || len(a.live) == 0 {
		return "no Compose"
	}
	size := a.w.config.PageSize
	next := &sequence{}
	var parts []prefix.Placed
	for range 2 {
		id, s := a.pick()
		pages := len(s.tokens) / size
		from := a.in.below(pages + 1)
		to := from + a.in.below(pages-from+1)
		m, err := prefix.NewModule(a.w.cache, id, from*size, to*size)
		if value := (*prefix.ValueError)(nil); errors.As(err, &value) {
			continue // its positions do not follow one another
		}
		must("NewModule", err)
		a.modules = append(a.modules, m)
		at := next.next + int32(a.in.below(5))
		parts = append(parts, prefix.Placed{Module: m, At: at})
		for i, t := range s.tokens[from*size : to*size] {
			t.position = at + int32(i)
			next.tokens, next.next = append(next.tokens, t), t.position+1
		}
	}
	id, err := prefix.Compose(a.w.cache, nil, nil, parts)
	for len(a.modules) > 2 || len(a.modules) > 0 && a.in.below(2) == 0 {
		must("Release of a module", a.w.cache.Release(a.modules[0].Pages...))
		a.modules = a.modules[1:]
	}
	if twice := (*kvcache.PageError)(nil); errors.As(err, &twice) {
		return "Compose refused: a page comes twice"
	}
	must("Compose", err)
	a.add(id, next)
	return fmt.Sprintf("Compose is %d of %d tokens", id, len(next.tokens))
}
