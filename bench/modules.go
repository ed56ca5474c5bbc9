package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/recurrence"
)

// moduleLine is a line of the table of modules.
type moduleLine struct {
	attention.Module
	Methods []string `json:"extrapolate"`     // methods of extrapolate that are made of it
	WhyNot  string   `json:"extrapolate_not"` // what it wants that extrapolate does not have
}

func listModules(_ context.Context, std streams, args []string) error {
	f := newFlags(std, "modules", "Lists the techniques of packages attention and recurrence: paper, kind, claim beyond the trained\nlength, what they need, the backends that compute them, what they compose with.")
	asJSON := f.Bool("json", false, "print JSON")
	if err := parse(f, args); err != nil {
		return err
	}
	methods, err := method.Select("all")
	if err != nil {
		return err
	}
	var lines []moduleLine
	for _, m := range attention.Modules() {
		line := moduleLine{Module: m, Methods: []string{}, WhyNot: method.WhyNot(m.Name)}
		for _, x := range methods {
			if x.Module == m.Name {
				line.Methods = append(line.Methods, x.Name)
			}
		}
		lines = append(lines, line)
	}
	for _, r := range recurrence.All() {
		i := r.Info()
		lines = append(lines, moduleLine{Methods: []string{}, WhyNot: "a model trained so", Module: attention.Module{
			Name: i.Name, Paper: "https://arxiv.org/abs/" + strings.TrimPrefix(i.Paper, "arXiv:"), Kind: "recurrence", Claim: i.Claim,
			Needs: "a model trained so; reads " + i.Reads.String(), Backends: "cpu, cuda (forward)", Composes: "other layers, each with pages or states of its own",
		}})
	}
	if *asJSON {
		e := json.NewEncoder(std.out)
		e.SetIndent("", "  ")
		return e.Encode(lines)
	}
	t := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "module\tkind\tclaim\tbackends\tneeds\tcomposes with\textrapolate\tpaper")
	for _, m := range lines {
		needs := m.Needs
		if needs == "" {
			needs = "–"
		}
		in := strings.Join(m.Methods, ", ")
		if in == "" {
			in = "no: it wants " + m.WhyNot
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, m.Kind, m.Claim, m.Backends, needs, m.Composes, in, m.Paper)
	}
	return t.Flush()
}
