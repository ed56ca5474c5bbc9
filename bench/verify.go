package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/longctx/longctx/backend"
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
	f := newFlags(std, "verify", "Runs the conformance suite on every backend of this machine: against a float64\n"+
		"oracle, and under the exact policy bit for bit against the rules. The exit\nstatus is 1 if anything differs.")
	only := f.String("backend", "", "`name` of the one backend to check (default: all)")
	quick := f.Bool("quick", false, "leave out slow cases")
	if err := parse(f, args); err != nil {
		return err
	}
	backends := backend.All()
	if *only != "" {
		b, err := backend.Open(*only)
		if err != nil {
			return err
		}
		backends = []kernel.Backend{b}
	}
	cases := kerneltest.Cases()
	bar := newBar(std, int64(len(cases)*len(backends)))
	var lines []*tally
	var faults []string
	for _, b := range backends {
		for _, c := range cases {
			bar.Describe(b.Name())
			for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
				if ctx.Err() != nil {
					bar.Close()
					return ctx.Err()
				}
				if c.Applies(policy) && !(*quick && c.Slow) {
					r := kerneltest.Check(b, c, policy)
					lines = count(lines, b.Name(), &c, &r)
					if r.Err != nil || r.Differences > 0 {
						faults = append(faults, b.Name()+" "+r.String())
					}
				}
			}
			bar.Add(1)
		}
	}
	bar.Close()
	return judge(std, lines, faults)
}

// count adds a result to its line, which is made if it is the first.
func count(lines []*tally, name string, c *kerneltest.Case, r *kerneltest.Result) []*tally {
	variant := variantOf(r.Kernel)
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
// policy, element type and sizes: cpu/generic of "cpu/generic/exact/f32/d128".
func variantOf(kernelName string) string {
	words := strings.Split(kernelName, "/")
	return strings.Join(words[:min(2, len(words))], "/")
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
