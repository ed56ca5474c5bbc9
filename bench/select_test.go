package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
)

func TestSelectRecallsAllWhereAllIsSeen(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-json -keys 200,513 -page 16 -pages 33 -repeats 1")); err != nil {
		t.Fatal(err)
	}
	var got []selectResult
	all, _ := decodeSelectors("")
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 2*len(all) {
		t.Fatalf("%v: %s", err, &out)
	}
	for _, r := range got {
		least := 0.0
		if r.Selector == "sparq-mean" {
			least = 1e-6 // its shares are rounded
		}
		if r.Mass != 1 || r.Error > least {
			t.Errorf("%+v, want all mass and no error", r)
		}
	}
}

func TestSelectRefusesBadFlags(t *testing.T) {
	for _, args := range []string{"-keys 3", "-keys x", "-keys 9999999999", "-page 0", "-pages 0", "-pages 1", "-repeats 0", "-selectors none"} {
		var out, errs bytes.Buffer
		if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields(args)); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}
