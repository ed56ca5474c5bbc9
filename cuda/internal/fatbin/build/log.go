package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/longctx/longctx/cuda/internal/fatbin"
)

// What ptxas -v prints of a kernel:
//
//	ptxas info    : Compiling entry function 'k' for 'sm_80'
//	ptxas info    : Function properties for k
//	    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
//	ptxas info    : Used 59 registers, used 1 barriers, 16 bytes smem, …
var (
	entry     = regexp.MustCompile(`(?m)Compiling entry function '(\w+)' for '(\w+)'`)
	frame     = regexp.MustCompile(`(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads`)
	registers = regexp.MustCompile(`Used (\d+) registers`)
	shared    = regexp.MustCompile(`(\d+) bytes smem`)
	parameter = regexp.MustCompile(`(?s)\.entry (\w+)\(\s*\.param \.align \d+ \.b8 \w+\[(\d+)\]\s*\)`)
	entries   = regexp.MustCompile(`\.entry (\w+)`)
)

func number(s string) int {
	n, _ := strconv.Atoi(s) // of a match of \d+
	return n
}

// parseLog reads the kernels out of what ptxas -v printed, by name.
func parseLog(log, arch string) ([]fatbin.Kernel, error) {
	var out []fatbin.Kernel
	at := entry.FindAllStringSubmatchIndex(log, -1)
	for i, m := range at {
		end := len(log)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		part := log[m[0]:end]
		k := fatbin.Kernel{Name: log[m[2]:m[3]], Arch: log[m[4]:m[5]]}
		f, r := frame.FindStringSubmatch(part), registers.FindStringSubmatch(part)
		if f == nil || r == nil || k.Arch != arch {
			return nil, fmt.Errorf("ptxas -v says nothing of the registers of %s for %s:\n%s", k.Name, arch, part)
		}
		k.Stack, k.Spill, k.Registers = number(f[1]), number(f[2])+number(f[3]), number(r[1])
		if s := shared.FindStringSubmatch(part); s != nil {
			k.Shared = number(s[1])
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("ptxas -v names no kernels:\n%s", log)
	}
	slices.SortFunc(out, func(a, b fatbin.Kernel) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// parameters reads the sizes of the kernels' parameters out of their PTX. Each
// has one struct.
func parameters(ptx []byte, m *fatbin.Manifest) error {
	size := map[string]int{}
	for _, p := range parameter.FindAllSubmatch(ptx, -1) {
		size[string(p[1])] = number(string(p[2]))
	}
	for _, e := range entries.FindAllSubmatch(ptx, -1) {
		if size[string(e[1])] == 0 {
			return fmt.Errorf("kernel %s does not take exactly one struct", e[1])
		}
	}
	for i := range m.Kernels {
		k := &m.Kernels[i]
		if k.Params = size[k.Name]; k.Params == 0 {
			return fmt.Errorf("kernel %s is not in the PTX", k.Name)
		}
	}
	return nil
}

// report prints what the kernels take, and is an error when one spills.
func report(m *fatbin.Manifest) error {
	var bad []string
	for _, k := range m.Kernels {
		fmt.Printf("%-28s %-7s %4d registers %6d bytes stack %6d spilled %6d shared\n", k.Name, k.Arch, k.Registers, k.Stack, k.Spill, k.Shared)
		if k.Spill > 0 {
			bad = append(bad, k.Name+" for "+k.Arch)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s: registers are spilled by %q", m.Source, bad)
	}
	return nil
}
