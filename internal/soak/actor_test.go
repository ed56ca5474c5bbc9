package soak

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
)

// actor drives sequences of its own on what the world shares.
type actor struct {
	w     *world
	in    source
	model map[kvcache.ID]*sequence
	live  []kvcache.ID
	away  []kvcache.ID // swapped out

	leases  []*prefix.Lease
	modules []prefix.Module
	log     []string // the last steps
}

const (
	maxLive   = 7
	maxTokens = 120
)

func (a *actor) note(what string) {
	if len(a.log) >= 40 {
		a.log = slices.Delete(a.log, 0, 1)
	}
	a.log = append(a.log, what)
}

// step does one thing.
func (a *actor) step() {
	ops := []func() string{
		a.begin, a.begin, a.extend, a.extend, a.extend, a.extend, a.fork, a.beams, a.truncate, a.speculate, a.drop, a.apply, a.apply,
		a.rewrite, a.free, a.reserve, a.grow, a.swapOut, a.bringBack, a.bringBack, a.compose, a.insert, a.insert, a.save, a.save, a.release, a.evict, a.devices,
	}
	a.note(ops[a.in.below(len(ops))]())
	if !a.w.together {
		a.w.backend.disarm()
	}
	a.w.counts.add(func(c *counts) { c.steps++ })
}

// readOne compares one sequence with the model.
func (a *actor) readOne() {
	if id, s := a.pick(); s != nil {
		a.w.read(id, s)
	}
}

func (a *actor) add(id kvcache.ID, s *sequence) {
	if a.model == nil {
		a.model = map[kvcache.ID]*sequence{}
	}
	if a.model[id] != nil {
		fail("ID %d was given twice", id)
	}
	a.model[id], a.live = s, append(a.live, id)
	a.w.counts.add(func(c *counts) { c.sequences++ })
}

func (a *actor) pick() (kvcache.ID, *sequence) {
	if len(a.live) == 0 {
		return 0, nil
	}
	id := a.live[a.in.below(len(a.live))]
	return id, a.model[id]
}

func (a *actor) forget(id kvcache.ID) {
	delete(a.model, id)
	a.live = slices.DeleteFunc(a.live, func(x kvcache.ID) bool { return x == id })
}

// arm makes a call of the backend fail, at times.
func (a *actor) arm(f *fuse) {
	if a.w.faults && a.in.below(6) == 0 {
		f.Store(1 + int64(a.in.below(4)))
	}
}

// context ends at times, before a call or in the midst of it.
func (a *actor) context() (ctx context.Context, cancel func()) {
	ctx, cancel = context.WithCancel(context.Background())
	if a.w.faults {
		switch a.in.below(10) {
		case 0:
			cancel()
		case 1:
			call := func() { cancel() }
			a.w.backend.during.Store(&call)
		}
	}
	return ctx, cancel
}

// refused reports whether a call was refused for a reason that can be, and then that
// nothing has changed.
func (a *actor) refused(what string, ctx context.Context, err error, before snapshot) bool {
	if err == nil {
		return false
	}
	var (
		pages  *kvcache.OutOfPagesError
		swap   *kvcache.OutOfSwapError
		cut    *kvcache.CodedPageError
		rows   *kvcache.CodedRowsError
		memory *kernel.OutOfMemoryError
	)
	coded := a.w.format.coded()
	switch {
	case errors.As(err, &pages), errors.As(err, &swap), coded && (errors.As(err, &cut) || errors.As(err, &rows)):
		a.w.counts.add(func(c *counts) { c.refused++ })
	case a.w.faults && (errors.Is(err, errInjected) || errors.As(err, &memory)):
	case ctx != nil && ctx.Err() != nil && errors.Is(err, context.Canceled):
		a.w.counts.add(func(c *counts) { c.cancelled++ })
	default:
		fail("%s: an error of no expected type: %T %w", what, err, err)
	}
	a.w.unchanged(what, before)
	return true
}

// begin is a new sequence of few possible tokens, so that prefixes meet: with what
// the index has of it, then what the levels have, then computed.
func (a *actor) begin() string {
	if len(a.live)+len(a.away) >= maxLive {
		return a.free()
	}
	s := &sequence{scope: a.in.below(len(scopes)), pure: true}
	ids := make([]int32, a.in.below(60))
	for i := range ids {
		ids[i] = int32(a.in.below(12) / 11)
	}
	p := promptOf(s.scope, ids)
	if a.w.levels != nil && a.in.below(2) == 0 {
		return a.beginBelow(s, p)
	}
	l, err := a.w.index.Match(p)
	must("Match", err)
	id, err := l.Start()
	must("Lease.Start", err)
	for _, t := range ids[:l.Tokens()] {
		s.push(t)
	}
	a.w.counts.add(func(c *counts) { c.hits += len(l.Pages()) })
	if a.leases = append(a.leases, l); a.in.below(3) > 0 {
		a.release()
	}
	a.add(id, s)
	what := fmt.Sprintf("begin %d with %d of %d tokens", id, l.Tokens(), len(ids))
	if a.in.below(2) == 0 {
		n := a.load(id, s, p)
		what += fmt.Sprintf(", %d pages from the levels", n)
	}
	a.compute(id, s, ids[len(s.tokens):])
	return what
}

// beginBelow begins with what the index has, or had.
func (a *actor) beginBelow(s *sequence, p *prefix.Prompt) string {
	ctx, cancel := a.context()
	defer cancel()
	id, found, err := a.w.levels.Start(ctx, a.w.index, p)
	if id == 0 {
		fail("Levels.Start: %w", err)
	}
	if !a.w.faults || !errors.Is(err, errInjected) {
		must("Levels.Start", expected(err, a.w.faults, ctx.Err() != nil))
	}
	for _, t := range p.Tokens[:found] {
		s.push(t)
	}
	a.add(id, s)
	a.w.counts.add(func(c *counts) { c.hits += found / a.w.config.PageSize })
	a.compute(id, s, p.Tokens[found:])
	return fmt.Sprintf("begin %d with %d of %d tokens, of the index and below it", id, found, len(p.Tokens))
}

// compute extends a sequence by tokens, with room made in the index. It reports
// whether there was room.
func (a *actor) compute(id kvcache.ID, s *sequence, ids []int32) bool {
	slots, err := prefix.Extend(a.w.cache, a.w.index, []kvcache.ID{id}, []int{len(ids)}, nil)
	if err != nil {
		before := a.w.snapshot()
		return !a.refused("prefix.Extend", nil, err, before)
	}
	first := len(s.tokens)
	for _, t := range ids {
		s.push(t)
	}
	a.store(s.tokens[first:], slots)
	return true
}

// store appends rows in all layers, again where the backend failed.
func (a *actor) store(tokens []token, slots []int32) {
	for layer := range a.w.config.Layers {
		key, value := a.w.shape.rows(layer, 0, tokens), a.w.shape.rows(layer, 1, tokens)
		a.arm(&a.w.backend.appends)
		for {
			err := a.w.cache.Append(layer, slots, key, value)
			if err == nil {
				break
			}
			if !a.w.faults || !errors.Is(err, errInjected) {
				fail("Append: %w", err)
			}
		}
	}
}

// extend is a step of a model on a ragged batch.
func (a *actor) extend() string {
	var ids []kvcache.ID
	var counts []int
	var positions []int32
	explicit := a.in.below(8) == 0
	for _, id := range a.live {
		n := a.in.below(2*a.w.config.PageSize + 2)
		if a.in.below(2) == 0 {
			n = min(n, 1)
		}
		if a.in.below(2) == 0 || len(a.model[id].tokens)+n > maxTokens {
			continue
		}
		ids, counts = append(ids, id), append(counts, n)
		for range n {
			positions = append(positions, int32(a.in.below(200)))
		}
	}
	a.arm(&a.w.backend.copies)
	if a.in.below(2) == 0 {
		a.arm(&a.w.backend.encodes)
	}
	what := fmt.Sprintf("Extend(%v, %v) at given positions %v", ids, counts, explicit)
	before := a.w.snapshot()
	var slots []int32
	var err error
	switch {
	case explicit && len(positions) > 0:
		slots, err = a.w.cache.ExtendAt(ids, counts, positions, nil)
	case a.in.below(2) == 0:
		explicit = false
		slots, err = a.w.cache.Extend(ids, counts, nil)
	default:
		explicit = false
		slots, err = prefix.Extend(a.w.cache, a.w.index, ids, counts, nil)
		before = a.w.snapshot() // what was evicted stays so
	}
	if err != nil && a.w.format.coded() {
		before = a.w.snapshot() // what was coded stays so
	}
	if a.refused(what, nil, err, before) {
		return what + " refused"
	}
	var batch []token
	for i, id := range ids {
		s := a.model[id]
		for range counts[i] {
			if explicit {
				s.pure = s.pure && positions[0] == int32(len(s.tokens))
				s.next, positions = positions[0], positions[1:]
			}
			batch = append(batch, s.push(int32(a.in.below(12)/11)))
		}
	}
	a.store(batch, slots)
	return what
}

func (a *actor) fork() string {
	id, s := a.pick()
	n := 1 + a.in.below(3)
	if s == nil || len(a.live)+len(a.away)+n > maxLive {
		return "no fork"
	}
	ids, err := prefix.Fan(a.w.cache, id, n)
	must("Fan", err)
	for _, other := range ids {
		a.add(other, s.clone())
	}
	return fmt.Sprintf("Fan(%d) is %v", id, ids)
}

func (a *actor) beams() string {
	if len(a.live) == 0 {
		return "no beams"
	}
	beams := slices.Clone(a.live)
	parents := make([]int, 1+a.in.below(min(maxLive-len(a.away), len(beams)+1)))
	for i := range parents {
		parents[i] = a.in.below(len(beams))
	}
	next, err := prefix.Beams(a.w.cache, beams, parents)
	must("Beams", err)
	old := a.model
	a.live = nil
	a.model = map[kvcache.ID]*sequence{}
	for _, id := range a.away {
		a.model[id] = old[id]
	}
	for i, id := range next {
		a.add(id, old[beams[parents[i]]].clone())
	}
	return fmt.Sprintf("Beams(%v, %v) is %v", beams, parents, next)
}

func (a *actor) truncate() string {
	id, s := a.pick()
	if s == nil {
		return "no truncate"
	}
	n := len(s.tokens) - a.in.below(len(s.tokens)+1)
	what := fmt.Sprintf("Truncate(%d, %d) of %d", id, n, len(s.tokens))
	before := a.w.snapshot()
	if a.refused(what, nil, a.w.cache.Truncate(id, n), before) {
		return what + " refused"
	}
	s.cut(n)
	return what
}

// speculate drafts tokens and takes some back.
func (a *actor) speculate() string {
	id, s := a.pick()
	if s == nil || len(s.tokens) > maxTokens-8 {
		return "no draft"
	}
	d, err := prefix.Speculate(a.w.cache, id)
	must("Speculate", err)
	base, draft := len(s.tokens), make([]int32, a.in.below(8))
	for i := range draft {
		draft[i] = int32(a.in.below(3))
	}
	if !a.compute(id, s, draft) {
		return "no room for a draft"
	}
	n := a.in.below(len(draft) + 1)
	what := fmt.Sprintf("Accept(%d) of %d of %d", n, len(draft), id)
	before := a.w.snapshot()
	if a.refused(what, nil, d.Accept([]int{n}), before) {
		return what + " refused"
	}
	s.cut(base + n)
	return what
}

// drop removes whole pages.
func (a *actor) drop() string {
	id, s := a.pick()
	if s == nil {
		return "no drop"
	}
	size, n := a.w.config.PageSize, len(s.tokens)
	from := a.in.below(n+1) / size * size
	to := from + a.in.below((n-from)/size+1)*size
	if a.in.below(4) == 0 {
		to = n
	}
	must("Drop", a.w.cache.Drop(id, from, to))
	s.tokens = append(slices.Clone(s.tokens[:from]), s.tokens[to:]...)
	s.pure = s.pure && from == to
	return fmt.Sprintf("Drop(%d, %d, %d) of %d", id, from, to, n)
}

// apply drops and merges keys of some sequences.
func (a *actor) apply() string {
	var ids []kvcache.ID
	var plans []kvcache.Plan
	for _, id := range a.live {
		if a.in.below(3) == 0 {
			ids, plans = append(ids, id), append(plans, a.plan(len(a.model[id].tokens)))
		}
	}
	a.arm(&a.w.backend.gathers)
	before := a.w.snapshot()
	what := fmt.Sprintf("Apply(%v, %v)", ids, plans)
	if a.refused(what, nil, a.w.cache.Apply(ids, plans), before) {
		return what + " refused"
	}
	for i, id := range ids {
		s := a.model[id]
		s.pure = s.pure && len(plans[i].Keep) == len(s.tokens) && len(plans[i].Merges) == 0
		s.tokens = a.w.shape.apply(s.tokens, &plans[i])
	}
	return what
}

// plan keeps all, runs, whole pages or any of n keys, and may merge others into them.
func (a *actor) plan(n int) (p kvcache.Plan) {
	kind, merges, keep := a.in.below(4), a.in.below(3) == 0, true
	for j := range n {
		switch kind {
		case 1:
			keep = a.in.below(2) == 0
		case 2:
			if j%a.w.config.PageSize == 0 {
				keep = a.in.below(2) == 0
			}
		case 3:
			if a.in.below(5) == 0 {
				keep = !keep
			}
		}
		if !keep {
			continue
		}
		p.Keep = append(p.Keep, int32(j))
		if merges && a.in.below(6) == 0 {
			x, from := float32(1+a.in.below(3))/4, int32(a.in.below(n))
			p.Merges = append(p.Merges, kvcache.Merge{Into: int32(j), From: int32(j), Key: 1 - x, Value: x},
				kvcache.Merge{Into: int32(j), From: from, Key: x, Value: 1 - x})
		}
	}
	return p
}

// rewrite computes the last tokens anew, as other tokens.
func (a *actor) rewrite() string {
	id, s := a.pick()
	if s == nil || len(s.tokens) == 0 {
		return "no rewrite"
	}
	n, m := len(s.tokens), 1+a.in.below(min(4, len(s.tokens)))
	keys := make([]int32, m)
	for i := range keys {
		keys[i] = int32(n - m + i)
	}
	what := fmt.Sprintf("Rewrite(%d, the last %d of %d)", id, m, n)
	a.arm(&a.w.backend.copies)
	before := a.w.snapshot()
	slots, err := a.w.cache.Rewrite(id, keys, nil)
	var value *kvcache.ValueError
	if a.w.format.coded() && errors.As(err, &value) {
		a.w.unchanged(what, before)
		return what + " refused: coded"
	}
	if a.refused(what, nil, err, before) {
		return what + " refused"
	}
	old, next := slices.Clone(s.tokens[n-m:]), s.next
	s.tokens = s.tokens[: n-m : n-m]
	for i := range old {
		s.next = old[i].position
		s.push(int32(a.in.below(4)))
	}
	s.next = next
	a.store(s.tokens[n-m:], slots)
	return what
}

func (a *actor) free() string {
	id, s := a.pick()
	if s == nil {
		return "no free"
	}
	must("Free", a.w.cache.Free(id))
	a.forget(id)
	var unknown *kvcache.UnknownSequenceError
	if err := a.w.cache.Free(id); !errors.As(err, &unknown) {
		fail("a second Free: %v", err)
	}
	return fmt.Sprintf("Free(%d)", id)
}

func (a *actor) reserve() string {
	id, s := a.pick()
	if s == nil {
		return "no reservation"
	}
	n := a.in.below(40)
	before := a.w.snapshot()
	what := fmt.Sprintf("Reserve(%d, %d)", id, n)
	if a.refused(what, nil, a.w.cache.Reserve(id, n), before) {
		return what + " refused"
	}
	if a.w.together || len(s.tokens)+n > maxTokens || a.in.below(2) == 0 {
		return what
	}
	other := a.w.cache.NewSequence() // takes all that is not reserved
	now := a.w.cache.Stats()
	_, err := a.w.cache.Extend([]kvcache.ID{other}, []int{(now.Free - now.Reserved) * a.w.config.PageSize}, nil)
	must("Extend by all that is not reserved", err)
	slots, err := a.w.cache.Extend([]kvcache.ID{id}, []int{n}, nil)
	must("Extend of what was reserved", err)
	must("Free", a.w.cache.Free(other))
	first := len(s.tokens)
	for range n {
		s.push(int32(a.in.below(2)))
	}
	a.store(s.tokens[first:], slots)
	return what + " taken"
}

// grow gives the cache more pages.
func (a *actor) grow() string {
	most := a.w.config.MaxPages
	now := a.w.cache.Config().Pages
	if most == 0 || a.in.below(10) > 0 || now == most {
		return "no Grow"
	}
	to := min(most, now+a.in.below(8))
	what := fmt.Sprintf("Grow(%d)", to)
	a.arm(&a.w.backend.grows)
	before := a.w.snapshot()
	err := a.w.cache.Grow(to)
	if a.w.together && errors.As(err, new(*kvcache.ValueError)) {
		return what + ": another was faster"
	}
	if a.refused(what, nil, err, before) {
		return what + " refused"
	}
	return what
}

func (a *actor) insert() string {
	id, s := a.pick()
	if s == nil || !s.pure {
		return "no insert"
	}
	p := s.prompt()
	p.Tokens = p.Tokens[:len(p.Tokens)-a.in.below(len(p.Tokens)+1)/2]
	p.Priority = a.in.below(3)
	n, err := a.w.index.Insert(p, id)
	must("Insert", err)
	return fmt.Sprintf("Insert %d pages of %d", n, id)
}

func (a *actor) release() string {
	if len(a.leases) == 0 {
		return "no release"
	}
	at := a.in.below(len(a.leases))
	a.leases[at].Release()
	a.leases = slices.Delete(a.leases, at, at+1)
	return "Release"
}

func (a *actor) evict() string {
	n := a.in.below(12)
	if a.in.below(12) == 0 {
		return fmt.Sprintf("Clear leaves %d", a.w.index.Clear())
	}
	free := a.w.cache.Stats()
	got := a.w.index.Evict(n)
	if now := a.w.cache.Stats(); !a.w.together && now.Free+now.CodedFree != free.Free+free.CodedFree+got {
		fail("Evict(%d) is %d, and %d pages are free, of %d", n, got, now.Free, free.Free)
	}
	return fmt.Sprintf("Evict(%d) is %d", n, got)
}

// devices changes how the levels do.
func (a *actor) devices() string {
	switch n := a.in.below(12); {
	case n == 0 && !a.w.together:
		return a.w.restart(a.in)
	case n < 6:
		return a.w.ill(a.in)
	default:
		return a.w.flush()
	}
}

// end frees all.
func (a *actor) end() {
	for len(a.live) > 0 {
		a.free()
	}
	for _, id := range a.away {
		must("Discard", a.w.space.Discard(id))
	}
	for len(a.leases) > 0 {
		a.release()
	}
	for _, m := range a.modules {
		must("Release of a module", a.w.cache.Release(m.Pages...))
	}
}
