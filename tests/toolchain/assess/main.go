// Says how GitOps tools judge objects, by their own code: Flux by kstatus, Argo CD by a health script.
//
//	assess health.lua < objects.json
//
// prints one line for each object of a list: its name, kstatus, Argo CD's health and Argo CD's message, divided by tabs.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	if err := assess(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func assess(script string) error {
	text, err := os.ReadFile(script)
	if err != nil {
		return err
	}
	overrides := lua.ResourceHealthOverrides{
		"breakwater.dev/RegistryMirror": v1alpha1.ResourceOverride{HealthLua: string(text)},
	}
	var list unstructured.UnstructuredList
	if err := json.NewDecoder(os.Stdin).Decode(&list); err != nil {
		return err
	}
	for i := range list.Items {
		object := &list.Items[i]
		flux, err := status.Compute(object)
		if err != nil {
			return fmt.Errorf("kstatus of %s: %w", object.GetName(), err)
		}
		// The script is asked by Argo CD's own judgement, which knows of deletion.
		argo, err := health.GetResourceHealth(object, overrides)
		if err != nil {
			return fmt.Errorf("health of %s: %w", object.GetName(), err)
		}
		fmt.Printf("%s\t%s\t%s\t%s\n", object.GetName(), flux.Status, argo.Status, argo.Message)
	}
	return nil
}
