package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/longctx/longctx/backend"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kernel/kerneltest"
)

// tally is a line of verify's table.
type tally struct {
	backend                                string
	policy                                 kernel.Policy
	op, variant                            string
	cases, unsupported, failed, difference int
}

func verify(ctx context.Context, std streams, args []string) error {
	f := newFlags(std, "verify", "Runs the conformance suite on every backend of this machine and every variant of\n"+
		"its kernels: against a float64 oracle, and under the exact policy bit for bit\nagainst the rules. The exit status is 1 if anything differs.")
	only := f.String("backend", "", "`name` of the one backend to check (default: all)")
	quick := f.Bool("quick", false, "leave out slow cases")
	minutes := f.Float64("minutes", 0, "go on for so many `minutes` with random cases")
	seed := f.Uint64("seed", uint64(time.Now().UnixNano())>>20, "of the first random case: `number`")
	if err := parse(f, args); err != nil {
		return err
	}
	if !(*minutes >= 0 && *minutes < 1e6) {
		return fmt.Errorf("-minutes is %v, want 0 or more", *minutes)
	}
	backends := backend.All()
	if *only != "" {
		b, err := backend.Open(*only)
		if err != nil {
			return err
		}
		backends = []kernel.Backend{b}
	}
	defer cpu.UseVariant(cpu.Variant())
	v := &verification{ctx: ctx, backends: backends}
	var cases []kerneltest.Case
	for _, c := range kerneltest.Cases() {
		if !*quick || !c.Slow {
			cases = append(cases, c)
		}
	}
	bar := newBar(std, int64(len(cases)))
	defer bar.Close()
	for _, c := range cases {
		if err := v.check(c, "cases"); err != nil {
			return err
		}
		bar.Add(1)
	}
	bar.Close()
	if *minutes > 0 {
		first, start := *seed, time.Now()
		bar = newBar(std, int64(*minutes*60))
		for time.Since(start).Minutes() < *minutes {
			if err := v.check(kerneltest.Random(*seed), "random"); err != nil {
				return err
			}
			*seed++
			bar.Set(int(time.Since(start).Seconds()))
		}
		bar.Close()
		fmt.Fprintf(std.out, "random cases: seeds %d to %d\n", first, *seed-1)
	}
	return judge(std, v.lines, v.faults)
}

// verification is a run of verify.
type verification struct {
	ctx      context.Context
	backends []kernel.Backend
	lines    []*tally
	faults   []string
}

// check holds all backends, variants and policies to one case.
func (v *verification) check(c kerneltest.Case, kind string) error {
	for _, b := range v.backends {
		variants := []string{""}
		if _, ok := b.(*cpu.Backend); ok {
			variants = cpu.Variants()
		}
		for _, variant := range variants {
			if variant != "" {
				if err := cpu.UseVariant(variant); err != nil {
					return err
				}
			}
			for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
				if v.ctx.Err() != nil {
					return v.ctx.Err()
				}
				if !c.Applies(policy) {
					continue
				}
				r := kerneltest.Check(b, c, policy)
				if kind == "random" {
					c.Op = "random " + strings.TrimPrefix(c.Op, "random ")
				}
				v.lines = count(v.lines, b.Name(), variant, &c, &r)
				if r.Err != nil || r.Differences > 0 {
					v.faults = append(v.faults, b.Name()+" "+variant+" "+r.String())
				}
			}
		}
	}
	return nil
}

// count adds a result to its line, which is made if it is the first.
func count(lines []*tally, name, variant string, c *kerneltest.Case, r *kerneltest.Result) []*tally {
	if variant == "" {
		variant = variantOf(r.Kernel)
	}
	var t *tally
	for _, l := range lines {
		if l.backend == name && l.policy == r.Policy && l.op == c.Op && l.variant == variant {
			t = l
		}
	}
	if t == nil {
		t = &tally{backend: name, policy: r.Policy, op: c.Op, variant: variant}
		lines = append(lines, t)
	}
	t.cases++
	t.difference += r.Differences
	switch {
	case r.Err != nil:
		t.failed++
	case r.Unsupported != nil:
		t.unsupported++
	}
	return lines
}

// variantOf is the part of a kernel's name that says which code it is, without
// backend, policy, element type and sizes: generic of "cpu/generic/exact/f32/d128".
func variantOf(kernelName string) string {
	words := strings.Split(kernelName, "/")
	return words[min(1, len(words)-1)]
}

// judge writes the table and returns an error if anything differs.
func judge(std streams, lines []*tally, faults []string) error {
	t := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "backend\tpolicy\toperation\tkernel\tcases\tunsupported\tfailed\tdifferences")
	cases, different, failed := 0, 0, 0
	for _, l := range lines {
		variant := l.variant
		if variant == "" {
			variant = "–"
		}
		fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%d\t%d\t%d\t%d\n", l.backend, l.policy, l.op, variant, l.cases, l.unsupported, l.failed, l.difference)
		cases, different, failed = cases+l.cases-l.unsupported, different+l.difference, failed+l.failed
	}
	t.Flush()
	for _, f := range faults {
		fmt.Fprintln(std.err, f)
	}
	if failed > 0 {
		fmt.Fprintf(std.out, "%d cases failed\n", failed)
	}
	fmt.Fprintf(std.out, "total: %d cases, %d differences\n", cases, different)
	if different > 0 || failed > 0 {
		return fmt.Errorf("verify: %d differences, %d failed cases", different, failed)
	}
	if cases == 0 {
		return fmt.Errorf("verify: no case was checked")
	}
	return nil
}
